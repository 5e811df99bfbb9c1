"""Image search as a web service: API and page (FastAPI), batching on replicas (Ray Serve), and a client."""
