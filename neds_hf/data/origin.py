"""Whether sessions of a dataset are simulated, real or the paper's own, and under which licence they are."""

from collections import Counter
from importlib import resources

import pandas as pd
import yaml

from neds_hf.data.files import TEXT_OR_NULL, parse_json
from neds_hf.data.schema import SIMULATED_LAB
from neds_hf.errors import NEDSError


def origins(sessions: pd.DataFrame) -> dict[str, int]:
    """`"simulated"`, `"real"` and `"unknown"` to a number of sessions; what no session is, is left out.

    Simulated are those of `neds simulate` and arrays whose `source` says so, unknown are arrays that name no
    source, real all others.

    Args:
        sessions: Rows of a dataset's `sessions` table.

    Raises:
        NEDSError: A column is not there, or a session's `provenance` is none.
    """
    if missing := [name for name in ("session", "lab", "provenance") if name not in sessions]:
        raise NEDSError(f"table sessions: expected a column {missing[0]!r}, found {', '.join(sessions)}")
    return dict(Counter(map(_origin, sessions["session"], sessions["lab"], sessions["provenance"])))


def license_of(sessions: pd.DataFrame) -> str:
    """Licence as the Hub names it: of simulations, of the IBL's repeated-site sessions, else `"unknown"`."""
    if set(origins(sessions)) == {"simulated"}:
        return "apache-2.0"
    public = {session for part in repeated_site_sessions().values() for session in part}
    return "cc-by-4.0" if public.issuperset(sessions["session"]) else "unknown"


def repeated_site_sessions() -> dict[str, list[str]]:
    """Ids of the IBL repeated-site sessions of the paper: 74 to `pretrain` on, 10 `held_out`."""
    listing = resources.files("neds_hf.data").joinpath("repeated_site_sessions.yaml")
    return yaml.safe_load(listing.read_text())


def _origin(session: str, lab: str, provenance: str) -> str:
    provenance = parse_json(f"session {session}", provenance, {"source?": TEXT_OR_NULL}, "provenance")
    source = provenance.get("source") or ""
    if lab == SIMULATED_LAB or "simulat" in source.lower():
        return "simulated"
    return "real" if source or "signals" in provenance else "unknown"
