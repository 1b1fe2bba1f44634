"""What hubconf.py hands out. It needs torch, torchvision, numpy and Pillow alone, and imports relatively:
torch.hub loads this package under another name than `ssd`, which a user's own module may have."""
