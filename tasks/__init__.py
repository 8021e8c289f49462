"""What kind of result a method makes, how it is measured, and what it is compared with."""
