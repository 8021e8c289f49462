"""What a run is: a config turned into objects, a folder, and a way back from the folder to the objects."""
