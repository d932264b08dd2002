"""`python -m jaxpoison` is the same as `jaxpoison`."""

import sys

from jaxpoison.cli import main

sys.exit(main())
