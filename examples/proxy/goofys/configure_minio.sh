#!/bin/sh
# Waits for the pod's MinIO, makes test-bucket, and puts /test.txt there and into its folder subdir.
set -eu

echo "waiting for MinIO"
until mc alias set k8s-minio-dev http://127.0.0.1:9000 minioadmin minioadmin >/dev/null 2>&1; do
    sleep 0.2
done
mc mb --ignore-existing k8s-minio-dev/test-bucket
for name in test.txt subdir/test.txt; do
    mc pipe "k8s-minio-dev/test-bucket/$name" </test.txt
done
