"""Text to masked batches.

    text files -> shards -> blocks -> documents -> packed rows -> masked rows -> micro-batches
     sources/    writing/   index/     reading/      packing        masking        batch

Read the rooms in this order.

1. What a corpus is. `sources/` finds documents in files and datasets; `sources/inputs.py` has the table of kinds. `writing/`
   shuffles them into shards. `index/` lists the shards and their blocks. `reading/` brings the bytes of a block, verified,
   and finds the documents in them.
2. Which text comes when: pure functions of (corpus, seed, step). `hashing` has the keyed hash and permutation under all of
   them. `order` says which block a lane reads next, `mixing` which corpus. `cursors` is how far a lane has come.
3. What a row is. `packing` turns the documents of a block into rows. `spans` and `masking` choose the tokens to predict.
   `rows` holds the result.
4. A run's data. `plan` has everything that the data follows from. A `lane` is one virtual reader. `stream` shares the lanes
   among ranks and reader processes, and `batch` cuts a rank's rows into micro-batches. `ahead` works one item ahead in a
   thread. `skew` warns of blocks whose sizes differ too much. `identity` says what a saved state belongs to.
5. The same for other trainers. `forms` gives rows as models of Hugging Face's take them, `stream_state` is what a stream saves,
   and `wrappers` refuses loaders that would change batches. `maskloom.masked_stream` puts all of it together.
"""
