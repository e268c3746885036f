"""One experiment an influence: the same face as a protocol's, named `<source>__<target>`.

The contestants are `self` (the target with the source) and `baseline`; an interaction has the four cells `neither`,
`source`, `target` and `both`. A trial's `setting` holds the strength that the edge is traced `along`; a `metric` in it
overrides the edge's own.
"""
