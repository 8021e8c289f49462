"""Trainings that survive signals, kills, full disks and lost processes; the one room that knows Lightning inside."""
