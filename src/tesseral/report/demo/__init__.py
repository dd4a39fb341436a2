"""The main job on what the package ships: plan, run, record, page."""
