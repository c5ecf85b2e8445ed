"""What a job costs: its chip-hours, their price, and MAX_CHIP_HOURS, which the cluster enforces by a time limit.

A job that restarts may take MAX_CHIP_HOURS in all: each attempt has an equal share, at whose end the job saves, so that the next resumes.
"""

from typing import Protocol

from adalink_jax.errors import UserError
from adalink_jax.launching.job import Job

_SHORTEST = 300  # seconds in which an attempt can start and save


class Priced(Protocol):
    """Settings of a launcher of chips that cost money.

    Attributes:
      max_chip_hours: the most that the job may take, with all attempts and elements of an array; None without a limit.
      price: of one chip-hour, in any currency; None if it is not known.
    """

    @property
    def max_chip_hours(self) -> float | None: ...

    @property
    def price(self) -> float | None: ...


def attempt_seconds(job: Job, settings: Priced, attempts: int) -> int | None:
    """The time limit of each attempt of the job; None without MAX_CHIP_HOURS.

    Args:
      job: the job, each element of whose array has all chips of its topology to itself.
      settings: of its launcher.
      attempts: the most attempts.

    Raises:
      UserError: if an attempt would be too short to start and save.
    """
    if settings.max_chip_hours is None:
        return None
    seconds = int(settings.max_chip_hours * 3600 / (job.topology.chips * (job.array or 1) * attempts))
    if seconds < _SHORTEST:
        raise UserError(
            f"MAX_CHIP_HOURS = {settings.max_chip_hours:g} leaves {seconds} seconds on {job.topology.chips} chips to each of "
            f"{attempts * (job.array or 1)} attempts, of at least {_SHORTEST}; raise it, or allow fewer restarts."
        )
    return seconds


def check(settings: Priced, chip_hours: float | None, what: str = "job", limit: str = "MAX_CHIP_HOURS") -> str | None:
    """Checks a planned job, or sweep, against its limit.

    Args:
      settings: of the launcher, or the sweep.
      chip_hours: of the whole job, roughly, by its plan; None if that is not known.
      what, limit: what is limited, and the limit's name.

    Returns:
      A sentence with its chip-hours and their price; None if there is nothing to say.

    Raises:
      UserError: for a job that takes more.
    """
    most = settings.max_chip_hours
    if chip_hours is not None and most is not None and chip_hours > most:
        raise UserError(
            f"The {what} takes roughly {_with_price(chip_hours, settings)}, more than {limit} = {most:g}; raise it, or train fewer steps."
        )
    parts = [] if chip_hours is None else [f"roughly {_with_price(chip_hours, settings)}"]
    parts += [] if most is None else [f"at most {_with_price(most, settings)}"]
    return f"Cost: {', '.join(parts)}." if parts else None


def _with_price(chip_hours: float, settings: Priced) -> str:
    price = "" if settings.price is None else f" ({chip_hours * settings.price:,.2f} at {settings.price:g} each)"
    return f"{chip_hours:{',.1f' if chip_hours >= 1 else '.3g'}} chip-hours{price}"
