"""What every storage backend promises. Knows no database: no module here imports a driver."""
