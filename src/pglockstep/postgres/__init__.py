"""What pglockstep knows of PostgreSQL: connections, names, the catalog, privileges, the replication protocol."""
