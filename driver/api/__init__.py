"""Serves gRPC to kubelet and operators. Each method is thin: it validates the request and calls one method of another package."""
