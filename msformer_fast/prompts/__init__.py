"""Clicks and boxes: what a person points at in an image (``prompt``), and the mask that follows from it (``rule``)."""
