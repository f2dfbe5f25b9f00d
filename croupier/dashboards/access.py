"""Who may see what: a password, or a reverse proxy's header that says who somebody is."""

from __future__ import annotations

import hmac
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import streamlit as st

from croupier.dashboards.settings import (
    FEATURES_PASSWORD_VARIABLE,
    PASSWORD_VARIABLE,
    passwords,
    settings,
)

if TYPE_CHECKING:
    from croupier.dashboards.settings import Passwords

__all__ = (
    "ask_for_admission",
    "is_admitted",
    "may_override",
    "may_see_features",
    "require_features",
    "viewer_name",
)

_OPENED: Final = "access_opened"
"""Key of what the viewer's password opens: pages, or features too."""

_PAGES, _FEATURES = "pages", "features"
_WRONG: Final = "access_wrong"
_ENTERED: Final = "access_password"
_MOST_WRONG: Final = 10
_WITHIN_S: Final = 60.0


def is_admitted() -> bool:
    """Whether the viewer may see pages."""
    if settings().trusted_header is not None:
        return viewer_name() is not None
    return not passwords().asked or st.session_state.get(_OPENED) is not None


def ask_for_admission() -> None:
    """Say what is missing, or ask for the password."""
    header = settings().trusted_header
    if header is None:
        _ask(passwords())
        return
    st.error("**Nobody has said who you are.**")
    st.markdown(
        f"This dashboard is for people whom a proxy has let in, named in the header `{header}`. "
        "Open it at the proxy's address."
    )


def viewer_name() -> str | None:
    """Who the proxy says that the viewer is; None without a proxy."""
    header = settings().trusted_header
    if header is None:
        return None
    return (st.context.headers.get(header) or "").strip() or None


def may_see_features() -> bool:
    """Whether the viewer may see the features of single decisions."""
    told = settings()
    if told.trusted_header is not None:
        return viewer_name() in told.features_for
    if passwords().asked:
        return bool(st.session_state.get(_OPENED) == _FEATURES)
    # Whoever is at this machine can read the lake's files as well.
    return True


def may_override() -> bool:
    """Whether the viewer may ask for another champion: only whom a proxy names, if configured."""
    told = settings()
    return told.trusted_header is not None and viewer_name() in told.overrides_for


def require_features() -> bool:
    """The same, and says so on the page if the viewer may not."""
    if may_see_features():
        return True
    st.info("**You may not see features of single decisions.**")
    if settings().trusted_header is not None:
        st.markdown("Your name would have to stand in `dashboard.features_for`.")
    else:
        st.markdown(f"Open the dashboard with the password in `{FEATURES_PASSWORD_VARIABLE}`.")
    return False


def _ask(known: Passwords) -> None:
    st.title("Croupier")
    with st.form("access", border=False):
        field, _ = st.columns([1, 2])
        field.text_input("Password", type="password", key=_ENTERED)
        st.form_submit_button("Open", on_click=_check, args=(known,))
    wrong = st.session_state.get(_WRONG)
    if wrong:
        st.error(wrong)
    st.markdown(f":small[It is what the dashboard was started with in `{PASSWORD_VARIABLE}`.]")


def _check(known: Passwords) -> None:
    state = st.session_state
    entered = str(state.get(_ENTERED) or "")
    attempts = _attempts()
    now = time.monotonic()
    while attempts and now - attempts[0] > _WITHIN_S:
        attempts.popleft()
    if len(attempts) >= _MOST_WRONG:
        state[_WRONG] = "There were too many wrong passwords. Wait a minute."
        return
    if _same(entered, known.features):
        state[_OPENED] = _FEATURES
    elif _same(entered, known.pages):
        state[_OPENED] = _PAGES
    else:
        attempts.append(now)
        state[_WRONG] = "That is not the password."


def _same(entered: str, password: str | None) -> bool:
    # In constant time, so that nothing can be learned from how long it takes.
    return password is not None and hmac.compare_digest(entered.encode(), password.encode())


@st.cache_resource
def _attempts() -> deque[float]:
    """When wrong passwords were given, by anybody."""
    return deque()
