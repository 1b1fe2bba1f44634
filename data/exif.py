"""How a camera was held, as a picture's EXIF data say. Training does not turn pictures, nor do boxes."""

from PIL import Image

ORIENTATION_TAG = 0x0112
UPRIGHT = 1


def orientation(picture: Image.Image) -> object:
    """Return the orientation tag, 1 to 8 where the file is sound, UPRIGHT where there is none.

    Pillow's readers raise almost anything where the EXIF data are damaged.
    """
    if picture.format == "PNG" and "exif" not in picture.info:
        return UPRIGHT  # getexif() would decode the picture to look behind the pixels
    return picture.getexif().get(ORIENTATION_TAG, UPRIGHT)
