"""Who may ask: keys, certificates, and what a server must have before it leaves loopback."""
