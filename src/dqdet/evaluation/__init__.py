"""From predictions to detections, and from detections to the official metrics."""
