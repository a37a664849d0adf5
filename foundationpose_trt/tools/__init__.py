"""Command line programs: composition roots that run the pose core without ROS."""
