"""Video in: files and image folders, data set lists, clips for training and evaluation, generated clips.

Stands alone: nothing here knows of networks. PyAV (the extra ``sparsetime[video]``) is imported when a file is first
read.
"""

from sparsetime.video.augment import Augment
from sparsetime.video.cache import FrameCache
from sparsetime.video.dataset import Broken, ClipDataset, EvalDataset
from sparsetime.video.generate import GeneratedClips, digit_glyphs, drift_clips
from sparsetime.video.lists import Clip, ClipList, ListError, by_share
from sparsetime.video.reader import VideoError, iter_frames, read_frames, salvage_frames
from sparsetime.video.sampling import eval_windows, train_window
from sparsetime.video.writer import write_clips, write_video

__all__ = [
    "Augment",
    "Broken",
    "Clip",
    "ClipDataset",
    "ClipList",
    "EvalDataset",
    "FrameCache",
    "GeneratedClips",
    "ListError",
    "VideoError",
    "by_share",
    "digit_glyphs",
    "drift_clips",
    "eval_windows",
    "iter_frames",
    "read_frames",
    "salvage_frames",
    "train_window",
    "write_clips",
    "write_video",
]
