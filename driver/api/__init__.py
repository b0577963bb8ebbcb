"""What kubelet and operators call over gRPC. Each service is thin: it validates the request and calls one method."""
