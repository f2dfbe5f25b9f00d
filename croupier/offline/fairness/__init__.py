"""Who is treated how: audits of groups and of individuals, of what was served and what is to be.

:mod:`~croupier.offline.fairness.group_audit` tells of every generation that served what each group
got and what it earned, with tests. :mod:`~croupier.offline.fairness.candidate_audit` tells the same
of a policy that nobody has served yet, from the log alone. Both make their groups by
:mod:`~croupier.offline.fairness.groups`, which shows none that is too small.
:mod:`~croupier.offline.fairness.pair_audit` looks for pairs of decisions that are alike and were
treated differently.
"""
