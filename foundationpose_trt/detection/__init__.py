"""Finds objects in colour images with RF-DETR: image bytes in, boxes, scores and masks out."""
