"""Pictures with boxes → a folder in COCO layout."""

from pathlib import Path

import msgspec

from data.convert.dataset import EXACT_DECIMALS, DataSet
from data.convert.folder import Link, place_pictures
from ssd.config import DataConfig


def write_coco(data: DataSet, folder: Path, link: Link) -> None:
    """Write both splits, ids counted from 1 through both, in the order given; `area` is the box's."""
    layout = DataConfig(path=str(folder))
    category_ids = {name: place for place, name in enumerate(data.categories, start=1)}
    categories = [{"id": place, "name": name} for name, place in category_ids.items()]
    image_id = annotation_id = 0
    for split, pictures in data.splits.items():
        place_pictures(pictures, layout.locate(f"{split}_images"), link)
        images, annotations = [], []
        for picture in pictures:
            image_id += 1
            header = picture.header
            size = {"width": header.width, "height": header.height}
            images.append({"id": image_id, "file_name": picture.name, **size})
            for box in picture.boxes:
                annotation_id += 1
                _, _, width, height = ltwh_px = [round(value, EXACT_DECIMALS) for value in box.ltwh_px]
                annotations.append(
                    {
                        "id": annotation_id,
                        "image_id": image_id,
                        "category_id": category_ids[box.category],
                        "bbox": ltwh_px,
                        "area": round(width * height, EXACT_DECIMALS),
                        "iscrowd": int(box.crowd),
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        file = layout.locate(f"{split}_annotations")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(msgspec.json.encode(document))
