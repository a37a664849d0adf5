"""The pose core: from an RGB-D frame and a mesh to camera_from_object, on any torch device."""
