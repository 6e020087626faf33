"""maskloom: pretrain encoders (BERT, RoBERTa and its kin, ModernBERT) on your own text.

The file list is the data flow: `data` turns text into masked batches, `model` turns a batch into a loss, `train` runs
DeepSpeed over it, `commands` is what people type.
"""

__version__ = "0.1.0"
