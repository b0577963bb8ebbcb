#!/bin/sh
# Where ros3fs has one that builds the AWS SDK for C++. This one needs none.
