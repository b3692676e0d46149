"""The annotation page: server, sign-in, queue."""
