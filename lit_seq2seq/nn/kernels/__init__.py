"""What is there for speed only. A test of the same name compares each with its plain twin.

| kernel | computes what these do |
|---|---|
| `products` | `torch.nn.functional.linear`, `a @ b` |
| `gates` | `torch.lstm_cell`, `torch.gru_cell` |
| `layers` | `torch.gru`, `torch.rnn_tanh`, `torch.rnn_relu`, one direction of a layer |
| `scan` | `in_rounds` beside it, `Cell.scan` |
| `feeding` | `Decoder.forward` with the steps of `InputFeedingDecoder` |
| `cross_entropy` | `torch.nn.functional.cross_entropy` after `linear` |
| `packed` | the network that it was made from |
"""
