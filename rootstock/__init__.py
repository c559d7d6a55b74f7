"""The public face of Rootstock: the client, and the wire contract under `rootstock.v1`."""
