"""The part that feeds, submits, watches, retries and kills. Private: use `xqute.Xqute`."""
