"""Text to masked batches. To be read in this order:

sources/   files and datasets -> documents          writing/  documents -> shards, in parts, restartable
index      what a corpus is: shards and blocks      indexing  making it, joining, checking
storage    verified bytes (remote, cache)           samples   bytes of a block -> documents
order      which block when: lanes, cursors         mixing    which corpus when
packing    documents -> rows                        masking   rows -> masked rows
plan       what a run's data follows from           lane      a virtual reader
stream     reader processes -> a rank's steps       batch     rows -> micro-batches
ahead      a thread that works one item ahead
"""
