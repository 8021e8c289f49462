"""What a run is: a config turned into objects, a folder, and a way back from the folder to the objects.

What a user can mend is a ValueError or an OSError of one sentence, here and in doors/.
"""
