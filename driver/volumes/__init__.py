"""Published volumes: one of them, all of them, what a container may ask of one, their records, their condition.

standalone.py adds volumes without Kubernetes.
"""
