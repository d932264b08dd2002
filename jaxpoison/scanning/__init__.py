"""The scan: sources, model, stream and detectors meet here and nowhere else."""

from jaxpoison.scanning.execute import forecast as forecast
from jaxpoison.scanning.execute import run as run
from jaxpoison.scanning.execute import scan as scan
from jaxpoison.scanning.explaining import explain as explain
from jaxpoison.scanning.plan import Method as Method
from jaxpoison.scanning.plan import Resources as Resources
from jaxpoison.scanning.plan import ScanPlan as ScanPlan
