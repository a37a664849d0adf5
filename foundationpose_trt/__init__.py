"""Find an object in RGB-D images, register its 6-DoF pose and track it, as a ROS 2 package."""

__version__ = '0.1.0'
