"""A workflow as manifests for Kubernetes with Argo: plain mappings, one module for each kind of them."""
