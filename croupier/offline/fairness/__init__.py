"""Who is treated how: audits of groups, of what was served and of what is to be served.

:mod:`~croupier.offline.fairness.group_audit` tells of every generation that served what each group
got and what it earned, with tests. :mod:`~croupier.offline.fairness.candidate_audit` tells the same
of a policy that nobody has served yet, from the log alone. Both make their groups by
:mod:`~croupier.offline.fairness.groups`, which shows none that is too small.
"""
