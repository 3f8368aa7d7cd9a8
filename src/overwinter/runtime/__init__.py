"""One life: the only place that creates tasks."""
