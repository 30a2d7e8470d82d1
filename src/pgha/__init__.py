"""High-availability PostgreSQL client for trio and asyncio."""
