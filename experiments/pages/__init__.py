"""Pages, pictures and folders that commands leave behind."""
