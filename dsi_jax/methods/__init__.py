"""Ways of retrieving, one object each: what a run trains, and how it then ranks documents."""
