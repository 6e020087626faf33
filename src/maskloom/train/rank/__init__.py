"""What keeps a rank honest: its watch, heartbeats, requests to stop, and its log."""
