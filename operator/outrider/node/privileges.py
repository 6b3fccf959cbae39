"""Who this program is: root for one moment, to make a folder of its own, and then somebody without any rights."""

import os

from outrider.node.config import ConfigError


def become(user: int) -> None:
    """Become another user, in its own group and no other, with no way back; nothing if that is who we are already.

    Leaving user 0 takes all capabilities (capabilities(7), "Effect of user ID changes on capabilities"). Raises
    ConfigError if this process may not, or if it could come back.
    """
    if os.getresuid() == (user, user, user):
        return
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except PermissionError:
        raise ConfigError(
            f"OUTRIDER_RUN_AS is {user}, and this is user {os.geteuid()}, who may not become that; start it as root "
            "with the capabilities SETUID and SETGID, or as that user"
        ) from None
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise ConfigError(f"this process could become root again after it became user {user}: that must not be")
