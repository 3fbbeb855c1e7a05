"""Detection transformers with dynamic query combinations."""

import warnings

# supervision works without OpenCV, which nothing here needs.
warnings.filterwarnings("ignore", message="OpenCV .* is not installed", module="supervision")
