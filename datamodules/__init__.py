"""What is read: folders of photos in the ecosystem's usual layouts, built-in photos, captions."""
