"""What an encoder is good for: labelled data, a probe over the frozen encoder, fine-tuning."""
