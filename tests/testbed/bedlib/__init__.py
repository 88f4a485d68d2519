"""The bed: systemd hosts, a lab network and the services of a small data centre, on one machine."""
