"""The annotation page: server, routes, sign-in."""
