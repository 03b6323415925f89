"""``python -m logsnr`` is ``logsnr``."""

import sys

from logsnr.cli.main import main

sys.exit(main())
