_base_ = './faster-rcnn_r18_fpn-dlu_shapes.py'
model = dict(neck=dict(top_down='direct'))
