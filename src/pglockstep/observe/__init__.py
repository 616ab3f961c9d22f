"""Where every floor above reports: logs, and what each link's state was when it was last heard of."""
