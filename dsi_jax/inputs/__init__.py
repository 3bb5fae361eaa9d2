"""From texts and image files to what encoders read."""
