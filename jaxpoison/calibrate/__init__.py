"""From scores to p-values, gates, groups and a verdict. Every threshold lives in this room."""

from jaxpoison.calibrate.fuse import Fused as Fused
from jaxpoison.calibrate.fuse import fuse as fuse
from jaxpoison.calibrate.gates import Gate as Gate
from jaxpoison.calibrate.gates import gate as gate
from jaxpoison.calibrate.null import benjamini_hochberg as benjamini_hochberg
from jaxpoison.calibrate.null import tail_log10_p as tail_log10_p
from jaxpoison.calibrate.verdict import Finding as Finding
from jaxpoison.calibrate.verdict import Group as Group
from jaxpoison.calibrate.verdict import Verdict as Verdict
from jaxpoison.calibrate.verdict import decide as decide
from jaxpoison.calibrate.verdict import extend as extend
from jaxpoison.calibrate.verdict import find as find
from jaxpoison.calibrate.verdict import redraw as redraw
from jaxpoison.calibrate.verdict import shifted_groups as shifted_groups
